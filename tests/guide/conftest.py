from tests.study.conftest import blank_pictures as blank_pictures
