"""Changes between a kill and a resume, by what they change (see ``benchmarks.guarantees_resume``)."""
