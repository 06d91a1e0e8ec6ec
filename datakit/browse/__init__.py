"""A page of this machine over what a build left: records found by what is known of them, their images, their place."""
