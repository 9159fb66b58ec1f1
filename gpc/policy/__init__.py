"""What a policy is, how to load one, and views of one."""
