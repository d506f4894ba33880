"""Where units are measured: in fresh processes of this machine, or on the machines of a Ray cluster."""
