"""From files to demonstrations, pictures and motion, and to batches of them."""
