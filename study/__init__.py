"""Votes to a ranking: design, record, store, analysis and figures of a preference study.

Knows methods by name and pictures by path; imports no other package of the project, no torch and
no interface. The protocol is docs/study.md.
"""
