"""From files to images and tables: radiographs, CheXpert folders, and phantoms that need no data at all."""
