"""What tuning is worth: the same tasks trained with tuned schedules, with rivals, and tuned by autolrs."""
