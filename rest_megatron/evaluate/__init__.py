"""How good the policy is on prompts it was not trained on."""
