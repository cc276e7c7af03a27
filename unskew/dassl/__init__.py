"""Dassl's API: run scripts written for Dassl on this engine, or this project's trainers in an installed Dassl.

``python -m unskew.dassl train.py ARGS...`` runs a script as if Dassl were installed.
"""
