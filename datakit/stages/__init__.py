"""What happens to records, one module a stage. No stage imports another."""
