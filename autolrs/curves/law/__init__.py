"""Loss laws that know the learning rate."""
