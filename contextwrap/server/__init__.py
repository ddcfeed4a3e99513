"""What is shown: the Context API and the dashboard, on one store."""
