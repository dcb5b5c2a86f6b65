"""The batch log and its tailers: what happens after a reading has been committed."""
