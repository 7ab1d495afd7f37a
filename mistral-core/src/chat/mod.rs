//! Chat requests to tokens, and tokens back to messages.
