"""Do maps point at findings whose places are known?"""
