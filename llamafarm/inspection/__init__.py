"""Looking at data as the model will see it, before anything is trained."""
