"""autolrs tunes a network's learning-rate schedule while it trains."""
