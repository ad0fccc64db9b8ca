"""Files on several machines, by way of a Dask cluster: who runs what, and again where a worker died, is Dask's affair."""
