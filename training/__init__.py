"""What changes weights: one run goes snapshot → (SFT) → reward model → PPO → gate."""
