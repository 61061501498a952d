"""What happens: one runnable module for each stage of the lifecycle."""
