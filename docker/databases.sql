-- PostgreSQL makes Prefect's database itself (POSTGRES_DB); this is MLflow's.
CREATE DATABASE mlflow OWNER tunemill;
