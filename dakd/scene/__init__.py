"""SCENE: radar scenes of any size in, class rasters and polygons of slicks out.

The path of a scene: open it (`rasters_in`, `georeference`), decide what its numbers are (`radiometry`), bring it to the
student's pixel spacing and greys (`resample`, `grey_scene`), classify it tile by tile in bands of rows (`grid`,
`engine`, `bands`), write the rasters (`rasters_out`), trace and measure the polygons (`polygons`, `measures`), and
write these and a quick-look (`vectors_out`, `quicklook`).
"""
