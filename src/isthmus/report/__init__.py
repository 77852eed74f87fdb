"""What came out: tables for the terminal, figures, and one self-contained page.

Import from the modules: `tables` needs neither torch nor plotly, so that running a bundle on a
small machine can print them.
"""
