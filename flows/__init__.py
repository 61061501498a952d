"""When it happens: Prefect runs the stages of dvc.yaml in order, side by side where they are independent."""
