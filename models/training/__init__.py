"""Recipes, data sets and the loop that trains the pose networks."""
