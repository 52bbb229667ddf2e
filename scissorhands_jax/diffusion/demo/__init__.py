"""The demonstration: a small network that draws digits and forgets how one of them is drawn."""
