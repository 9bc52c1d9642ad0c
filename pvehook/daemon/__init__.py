"""The service: hook calls in, answers out; one run per vzdump worker."""
