"""The model: its configuration, its parameters, and `GPTModel`, PyTorch's face."""
