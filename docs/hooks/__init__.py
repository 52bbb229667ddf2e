"""What makes a site of docs/: pages made from code and results, and the examples of pages, run."""
