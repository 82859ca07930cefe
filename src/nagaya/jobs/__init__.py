"""Background work: jobs that outlive the request, the process and the server that took them."""
