"""Parts of check_pretokenizers.py."""
