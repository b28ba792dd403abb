"""From a float network to one whose every scale is known: what training learns is what the integer files hold."""
