"""The commands; an installed package runs them too, as `daps-robot train_action_vae --dataset …`."""
