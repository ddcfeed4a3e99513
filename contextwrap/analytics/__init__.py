"""What is learnt from the conversations, and the pipeline that carries them into a store."""
