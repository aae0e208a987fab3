"""What every package uses: parameters, paths, tables, schemas, messages, images, and the runner of stages."""
