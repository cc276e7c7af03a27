"""Dassl, both ways: scripts written for it on this engine, and this project's trainers in a real one.

``python -m unskew.dassl train.py ARGS...`` runs a script as if Dassl were installed.
"""
