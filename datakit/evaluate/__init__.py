"""What an encoder has learnt, measured on frozen features."""
