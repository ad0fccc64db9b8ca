"""Live captions in a browser: what streams say, told to a page on this machine while it is being said."""
