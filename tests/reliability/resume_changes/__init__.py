"""Changes between a kill and a resume, by what they change (see ``tests.reliability.changed_resumes``)."""
