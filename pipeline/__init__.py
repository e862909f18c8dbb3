"""Order the steps: recipe, resumable run, umbrella command."""
