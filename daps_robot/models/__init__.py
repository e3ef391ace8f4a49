"""Networks, and what is made of them: tokenizers, priors and policies."""
