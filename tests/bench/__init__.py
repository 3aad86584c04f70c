"""What is measured rather than tested: each module runs ours and its peers in the same run, and prints ratios."""
