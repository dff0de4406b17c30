"""The page for people: pictures in, the endpoint's answer out, in words and pictures. It holds no model and stores nothing."""
