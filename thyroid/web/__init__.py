"""The page for people: it takes pictures and shows the endpoint's answer in words and pictures.

It holds no model and stores nothing.
"""
