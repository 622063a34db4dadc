"""Our models inside other projects' evaluation harnesses. Nothing else imports those."""
