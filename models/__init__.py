"""The nets, one file a family. `forward(x, state) -> (y, state)` and `initial_state(batch)`; state is a value.

x is (B, T, …), y the logits (B, T, K), state a dict of tensors with the batch axis first; a stateless net has none.
Scaling and standardisation are inside. This file imports nothing, so that the zoo is found without torch.
"""
