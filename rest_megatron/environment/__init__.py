"""What an answer acts on."""
