"""What automatic boxes cost: the boxes of the step `locate`, the measurement, its pictures and its words."""
