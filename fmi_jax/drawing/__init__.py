"""Style of figures and of HTML pages."""
