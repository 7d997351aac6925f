"""The prompt: dialogue steps to chat messages to token ids, and targets to protocol text.

The only caller of `apply_chat_template`. Two layouts: `published` is the one of the paper's training data, byte for
byte; `compact` carries the same information in few tokens, for the tiny policy.
"""
