"""The systems that Graftwork is measured against, each in a process of its own."""
