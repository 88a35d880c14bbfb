"""Networks, pictures and processes that several tests share."""
