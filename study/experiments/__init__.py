"""Experiments, each on one question about surgery: what is measured, the page that its rows make, and the page as made.

Their list is ``study.bench.experiment.EXPERIMENTS``; ``README.md`` beside this file is the index of what came out.
"""
